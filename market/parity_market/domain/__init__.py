"""The market's pure decisions."""
