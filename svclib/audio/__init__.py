"""Units, decoding, resampling, mel spectrograms, loudness, synthesis."""
