"""The lesson: a page that explains the diffusion of one song."""
