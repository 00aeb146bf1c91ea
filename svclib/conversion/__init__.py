"""From a song to a converted song, and the metrics of the result."""
