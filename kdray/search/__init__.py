"""Asking a student about a pool: the k lowest, exactly or by far fewer forward passes; gains; features."""

from kdray.search.local import LocalSearcher, probe
from kdray.search.lowest import LowestK, Scored
from kdray.search.method import Found, Method, SearchRequest, run_search
from kdray.search.requests import Reply, Request, Searcher
from kdray.search.whole import BestRequest, EndsRequest, FeaturesRequest, Gains, GainsRequest, ScoresRequest, Values

__all__ = [
    "BestRequest",
    "EndsRequest",
    "FeaturesRequest",
    "Found",
    "Gains",
    "GainsRequest",
    "LocalSearcher",
    "LowestK",
    "Method",
    "Reply",
    "Request",
    "Scored",
    "ScoresRequest",
    "SearchRequest",
    "Searcher",
    "Values",
    "probe",
    "run_search",
]
