"""A small scorer in the teacher's place: it learns from a share of the scores and predicts the rest."""
