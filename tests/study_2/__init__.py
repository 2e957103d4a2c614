"""The second study (`docs/study.md`): its stages, the choices between them, and what is kept of every run."""
