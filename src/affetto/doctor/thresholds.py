"""All thresholds of the doctor, each with its source; "by hand" means that it has none."""

from __future__ import annotations

from affetto.evaluate.summary import MARGINS
from affetto.metrics.statistics import MIN_PAIRS

FORGETTING_NATS = MARGINS["delta_nll"].size
"""Nats per code of ΔNLL; of KL too, which is its expectation on the base's own speech (method, section 7)."""
OVER_BUDGET = 1.25
"""A run may exceed its forgetting budget by this factor: the budget is met on other clips than these."""
MIN_CLIPS_FOR_A_VERDICT = MIN_PAIRS
"""Fewer held-out clips or files give no verdict (method, section 7)."""

LEARNED_SHARE = 0.10
"""The loss on emotional clips must fall by this share. At the guide's learning rate of 1e-5 it fell by 1 % between the
first epoch and the last, and recall was the base's (docs/differences.md); runs whose recall came near its ceiling
lost 30 % and more. The threshold in between is by hand."""
FEW_STEPS = 100
"""Fewer optimizer steps than this can't have learned much at any rate. By hand; the defaults take 405."""
STILL_FALLING_SHARE = 0.01
"""Fall of the validation loss within the last epoch. By hand: at 1 % an epoch, half as many epochs again are worth a
few percent."""
MORE_EPOCHS = 1.6
"""Factor for the number of epochs; 5 becomes 8, enough to see whether it helps."""

GRADIENT_SPIKE = 10.0
"""Gradient norm over the run's median after warm-up. By hand: `max_grad_norm` clips a spike, but a single batch then
sets the step's direction."""
LOSS_SPIKE = 1.5
"""Training loss over the median of the five logged before it. By hand: a batch's clips vary less than this."""
MIN_LOGGED_STEPS = 6
"""Fewer logged steps after warm-up give no usual value to compare with."""
RISEN_SHARE = 0.01
"""Rise of the validation value from its best to the end. By hand; less needs no action, since the best is kept."""

FEW_CLIPS = 100
"""Emotional training clips. By hand: 160 were the fewest seen to work (docs/log.md, the miniature)."""
HEARD_SHARE = 0.5
"""Recall on real clips below which a judge is more often wrong than right about the emotion."""
FAILED_SHARE = 0.05
"""Share of files that could not be judged, or of clips that had to be left out. By hand."""
GAP_SHARE = 0.15
"""Validation over training loss on emotional clips, as a share of the training loss. By hand."""
MOST_RANK = 64
"""No larger rank is proposed: from 16 to 64 the loss on emotional clips fell by 0.4 % and the KL rose by half
(docs/preservation.md, one seed)."""
STRONGEST = 0.999
"""Share of the highest measured intensity from which a recommendation counts as being at the edge."""
