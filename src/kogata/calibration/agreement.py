"""The drop of accuracy to expect of a changed model, on the calibration data and without labels."""

from __future__ import annotations

from torch import nn

from kogata.calibration.batches import calibration_batches
from kogata.calibration.sensitivity import class_axis, log_probabilities
from kogata.errors import NotApplicable
from kogata.job import Job
from kogata.network.batch import call, evaluating


def expected_drop(job: Job, model: nn.Module) -> float:
    """Points of accuracy, 0 to 100, that ``model`` loses against the original where labels are drawn from the original.

    That is the mean over samples of p(the original's choice) − p(the model's choice), p being the original's probabilities:
    a sample on which both agree loses nothing, and one on which the original was undecided little. Raises NotApplicable when
    the outputs are no class scores.
    """
    lost, rows = 0.0, 0
    with evaluating(job.reference) as reference, evaluating(model):
        for inputs, targets in calibration_batches(job.reference, job.task):
            output, changed = call(reference, inputs), call(model, inputs)
            axis = class_axis(output, targets)
            if axis is None:
                raise NotApplicable("the outputs are no class scores, so no drop of accuracy can be told; give bytes or slope")
            wanted_NC, found_NC = log_probabilities(output, axis).exp(), log_probabilities(changed, axis)
            chosen_N = wanted_NC.gather(1, found_NC.argmax(1, keepdim=True))[:, 0]
            lost += float((wanted_NC.amax(1) - chosen_N).double().sum())
            rows += len(wanted_NC)
    return 100 * lost / max(rows, 1)
