"""Measures of a saliency map against its mask, for one image (`measure`) and for a data set (`Totals`), as functions of
NumPy arrays alone.

Numbers of the two protocols are not comparable:

- "purnet" is that of the released code and of the paper's tables. The object is the mask's brightest grey value (255
  in a mask that has any). Mean absolute error and weighted F (β = 1) take everything else as background; F takes only
  the darkest value, and leaves soft edges out. A map of another size is resized by its nearest pixels. F is that of the
  data set's mean precision and mean recall, at floor(min(2·mean, 255)) of 255. The authors' code measures nothing
  else; the other measures are the field's, on the same maps and masks.
- "pysod" is that of PySODMetrics, which most of the field uses. The object is above 128, everything else is background,
  a map of another size is refused, and a data set's number is the mean of its images'. The largest and the mean F and E
  are those of the mean curve.

In both, a map is stretched to [0, 1] (a constant one is taken as it is, uint8 as parts of 255), and curves hold one
value for each threshold t = 0 … 255; the pixels that are found are those of floor(255·map) ≥ t.
"""

from purinet_jax.evaluation.metrics.comparison import Protocol
from purinet_jax.evaluation.metrics.measures import NUMBERS, Measures, Totals, measure

__all__ = ["NUMBERS", "Measures", "Protocol", "Totals", "measure"]
