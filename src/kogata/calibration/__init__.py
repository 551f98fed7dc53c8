"""What one pass over calibration data tells of a model: statistics, gradients, losses, costs."""
