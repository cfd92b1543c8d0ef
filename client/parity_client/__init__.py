"""The submitter's SDK."""
