"""The ad click ensemble that won the Toss NEXT ML CHALLENGE: ten folds, 36 models, one calibrated answer."""
