"""What steps of Muon on sparse weights cost, in steps of the dense layer."""
