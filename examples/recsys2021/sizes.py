"""How large everything is: one frozen dataclass, one value of it per size.

`small` trains in two minutes; `paper` makes a row cost what it cost the original: its trees, its layers, its keyed
look-ups, and user tables far beyond a processor's caches.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PAPER", "SIZES", "SMALL", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """Every number that decides what the rows and the models of the stack cost.

    The widths of the nets are the original's; a size differs from another in its rows, its tables and its trees.

    Attributes:
        name: what the command line calls this size.
        seed: seed of the rows and of every model.
        rows_per_week: rows in each of the four weeks; the last week is split into validation and test rows.
        validation_share: part of week 4 that stage 2 learns from; the rest are the test rows.
        golden_rows: test rows whose served answers are compared with the training libraries'.
        users: distinct users; authors and readers come from the same users.
        vocabulary: text token ids are 1 to vocabulary - 1; 0 is the pad.
        hashtags: distinct hashtags.
        languages: distinct language hashes.
        topics: subjects that texts are about and users care for.
        tokens: text tokens that NN1 and NN3 read (the workflow cuts there).
        nn2_tokens: text tokens that NN2 reads.
        list_hashtags: hashtags that a net reads.
        user_threshold: a user seen less often than this shares one row with the other rare users.
        known_users: so many users read once and write once in the second week, in rows of their own, so that every
            table of users holds them; 0 where rows are drawn by a power law alone.
        own_statistics: whether each family of forests and each net has keyed look-ups of its own, as in the original
            (`keyed.py`); without, all share those of `features`.
        min_child_weight: XGBoost's: the larger, the earlier trees stop.
        forest_threads: forests of stage 1 that are trained side by side; nets are trained beside them.
        xgb1_trees, xgb2_trees, xgb3_trees, xgb4_trees, xgb5_trees: trees per target, in the order of TARGETS.
        xgb1_bags, xgb4_bags, xgb5_bags: copies of a forest, averaged, that differ in their seed.
        depth, stage2_depth: levels of every tree of stage 1 and of stage 2.
        learning_rate: shrinkage of stage 1's trees.
        stage2_learning_rate: shrinkage of stage 2's trees.
        nn1_nets: identical nets that are averaged into NN1.
        nn1_word, nn1_user: widths of NN1's token and user tables.
        nn1_top: widths of NN1's top layers.
        nn2_gru, nn2_user, nn2_hashtag: widths of NN2's text state, reader table and hashtag table.
        nn2_tower, nn2_other, nn2_top: widths of the layers of NN2's two towers, of its third tower and of its top.
        nn3_gru, nn3_user, nn3_category: widths of NN3's text state, user table and category tables.
        nn3_top: widths of NN3's top layers.
        bert: width of the frozen token table that NN2 and NN3 read.
        nn1_epochs, nn2_epochs, nn3_epochs: passes over the training rows.
        nn1_rows, nn2_rows, nn3_rows: rows that a pass of a net reads, the newest first.
        nn1_batch, nn2_batch, nn3_batch: rows of a training step.
    """

    name: str
    seed: int
    rows_per_week: int
    validation_share: float
    golden_rows: int
    users: int
    vocabulary: int
    hashtags: int
    languages: int
    topics: int
    xgb1_trees: tuple[int, int, int, int]
    xgb2_trees: tuple[int, int, int, int]
    xgb3_trees: tuple[int, int, int, int]
    xgb4_trees: tuple[int, int, int, int]
    xgb5_trees: tuple[int, int, int, int]
    depth: int
    stage2_depth: int
    learning_rate: float
    stage2_learning_rate: float
    user_threshold: int
    nn1_nets: int
    nn1_epochs: int
    nn2_epochs: int
    nn3_epochs: int
    nn1_rows: int
    nn2_rows: int
    nn3_rows: int
    nn1_batch: int
    nn2_batch: int
    nn3_batch: int
    known_users: int = 0
    own_statistics: bool = False
    min_child_weight: float = 8
    forest_threads: int = 1
    tokens: int = 48
    nn2_tokens: int = 42
    list_hashtags: int = 8
    xgb1_bags: int = 3
    xgb4_bags: int = 3
    xgb5_bags: int = 3
    nn1_word: int = 192
    nn1_user: int = 96
    nn1_top: tuple[int, ...] = (320, 320, 320)
    nn2_gru: int = 64
    nn2_user: int = 64
    nn2_hashtag: int = 16
    nn2_tower: tuple[int, ...] = (256, 256)
    nn2_other: tuple[int, ...] = (15, 15)
    nn2_top: tuple[int, ...] = (256, 256)
    nn3_gru: int = 128
    nn3_user: int = 128
    nn3_category: int = 16
    nn3_top: tuple[int, ...] = (1024, 256, 64)
    bert: int = 768


SMALL = Sizes(
    name="small",
    seed=2021,
    rows_per_week=18_000,
    validation_share=0.55,
    golden_rows=2_000,
    users=3_000,
    vocabulary=10_000,
    hashtags=400,
    languages=66,
    topics=16,
    xgb1_trees=(40, 40, 40, 40),
    xgb2_trees=(40, 60, 40, 40),
    xgb3_trees=(30, 30, 30, 30),
    xgb4_trees=(30, 40, 25, 45),
    xgb5_trees=(30, 30, 30, 30),
    depth=6,
    stage2_depth=5,
    learning_rate=0.12,
    stage2_learning_rate=0.1,
    user_threshold=3,
    nn1_nets=1,
    nn1_epochs=1,
    nn2_epochs=1,
    nn3_epochs=1,
    nn1_rows=54_000,
    nn2_rows=18_000,
    nn3_rows=32_000,
    nn1_batch=256,
    nn2_batch=64,
    nn3_batch=128,
)

PAPER = Sizes(
    name="paper",
    seed=2021,
    rows_per_week=60_000,
    validation_share=0.5,
    golden_rows=2_000,
    users=1_150_000,
    vocabulary=119_547,
    hashtags=400,
    languages=66,
    topics=16,
    xgb1_trees=(250, 250, 250, 250),
    xgb2_trees=(642, 998, 479, 483),
    xgb3_trees=(550, 615, 800, 694),
    xgb4_trees=(273, 436, 184, 601),
    xgb5_trees=(250, 250, 250, 250),
    depth=8,
    stage2_depth=8,
    learning_rate=0.02,
    stage2_learning_rate=0.02,
    user_threshold=2,
    nn1_nets=2,
    nn1_epochs=1,
    nn2_epochs=1,
    nn3_epochs=1,
    nn1_rows=8_192,
    nn2_rows=4_096,
    nn3_rows=4_096,
    nn1_batch=512,
    nn2_batch=256,
    nn3_batch=256,
    known_users=1_050_000,
    own_statistics=True,
    min_child_weight=0,
    forest_threads=2,
)

SIZES: dict[str, Sizes] = {size.name: size for size in (SMALL, PAPER)}
