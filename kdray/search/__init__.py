"""Requests about a pool, answered with a student: the lowest, gains, features, scores, classes, source logits."""

from kdray.search.acquisition import Score, confidence, entropy, margin
from kdray.search.gains import Gains, GainsRequest
from kdray.search.lowest import SearchRequest, SearchResult
from kdray.search.requests import Request, SearchContext, Searcher
from kdray.search.topk import LowestK, Scored
from kdray.search.values import (
    BestRequest,
    FeaturesRequest,
    PredictionsRequest,
    ScoresRequest,
    SourceLogitsRequest,
    Values,
)

__all__ = [
    "BestRequest",
    "FeaturesRequest",
    "Gains",
    "GainsRequest",
    "LowestK",
    "PredictionsRequest",
    "Request",
    "Score",
    "Scored",
    "ScoresRequest",
    "SearchContext",
    "SearchRequest",
    "SearchResult",
    "Searcher",
    "SourceLogitsRequest",
    "Values",
    "confidence",
    "entropy",
    "margin",
]
