"""How far a picture is from its clean original: the training loss and the metrics."""
