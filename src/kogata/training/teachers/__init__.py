"""What a teacher says of a batch: live, cached, an ensemble, or sampled from a posterior."""
