"""Weight sharing: many weights take few distinct values or vectors."""
