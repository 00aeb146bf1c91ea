"""Networks and the instrument file."""
