"""Content encoders: speaker- and pitch-independent features."""
