"""Quality of samples: one small pure file per metric, features to statistics to a number."""

from .evaluate import KID_LEAST, Estimate, Protocol, Quality, evaluate, paired_fid_difference
from .features import NOT_INCEPTION, ClassifierExtractor, Extractor, Features, collect
from .fid import fid, frechet
from .inception_score import inception_score
from .kid import Kid, kid, mmd, paired_kid_difference
from .precision_recall import precision_recall
from .recognition import Recognition, recognition, wilson
from .reference import Reference
from .statistics import Moments

__all__ = [
    "KID_LEAST",
    "NOT_INCEPTION",
    "ClassifierExtractor",
    "Estimate",
    "Extractor",
    "Features",
    "Kid",
    "Moments",
    "Protocol",
    "Quality",
    "Recognition",
    "Reference",
    "collect",
    "evaluate",
    "fid",
    "frechet",
    "inception_score",
    "kid",
    "mmd",
    "paired_fid_difference",
    "paired_kid_difference",
    "precision_recall",
    "recognition",
    "wilson",
]
