"""The winning stack of the ACM RecSys 2021 challenge, trained on synthetic rows of the challenge's schema."""

from __future__ import annotations

TARGETS: tuple[str, ...] = ("reply", "retweet", "quote", "like")
"""The four engagements, in the order every model answers them."""

AUTHOR_CUTS: tuple[int, ...] = (240, 588, 1331, 3996)
"""Follower counts that split the authors into the challenge's five groups (a count equal to a cut is in the upper)."""

MENTION = 137
"""The token of an "@" among BERT's multilingual ones: each in a text mentions a user."""
