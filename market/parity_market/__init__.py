"""The market (coordinator): matches, verifies, aggregates, settles."""
