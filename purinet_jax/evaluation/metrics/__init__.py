"""Measures of a saliency map against its mask: the field's numbers, for one image (`measure`) and for a data set
(`Totals`), as functions of NumPy arrays alone.

There are two protocols, whose numbers are not comparable, so that a number is worth nothing without its protocol:

- "purnet" is the released code's, which the paper's tables use. A mask's object is its brightest grey value (255
  in a mask that has any). Mean absolute error and weighted F (β = 1) take everything else as ground; F takes only the
  darkest value, and leaves soft edges out. A map of another size is resized by its nearest pixels. F is that of
  the data set's mean precision and mean recall, at floor(min(2·mean, 255)) of 255. That is all which the
  authors' code measures; the other measures are the field's, on the same maps and masks.
- "pysod" is PySODMetrics', which most of the field uses. Object is above 128, everything else is ground, a map of
  another size is refused, and a number of a data set is the mean of its images'. The largest and the mean F and E are
  those of the mean curve.

In both, a map is stretched to [0, 1] (a constant one, which cannot be, is taken as it is, uint8 as parts of
255), and curves hold one value for each threshold t = 0 … 255: what is found is floor(255·map) ≥ t.
"""

from purinet_jax.evaluation.metrics.comparison import Protocol
from purinet_jax.evaluation.metrics.measures import NUMBERS, Measures, Totals, measure

__all__ = ["NUMBERS", "Measures", "Protocol", "Totals", "measure"]
