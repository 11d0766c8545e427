"""The arms: every depth with every gamma; and the law that is published for the best gamma."""

DEPTHS = [1, 2, 4]
GAMMAS = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
# Best gamma = factor * layers ** exponent (arXiv 2602.04902).
PUBLISHED_FACTOR, PUBLISHED_EXPONENT = 4.17, -0.74
