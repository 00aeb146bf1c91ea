"""The svclib command."""
