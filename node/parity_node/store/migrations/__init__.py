"""The journal's schema, one file per version."""
