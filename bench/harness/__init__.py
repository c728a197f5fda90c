"""What every topic of the bench shares: plans, jobs, contests, records, bars, tables and files."""
