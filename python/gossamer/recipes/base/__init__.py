"""What recipes share: the base class, the registry, checks, update steps, slots and captures."""
