"""What is compressed and how it is judged: built-in tasks, and task files for a person's own model and data."""
