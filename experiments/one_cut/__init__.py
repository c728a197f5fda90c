"""Dense models that are cut once, without training after it: AdamW beside CrAM+."""
