"""Parts that only benchmarks need: clips, measures of generated sets, controls without a model, converters."""
