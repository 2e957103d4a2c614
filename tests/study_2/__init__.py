"""The second study (`docs/study.md`): its stages, the choices between them, and the records of its runs."""
