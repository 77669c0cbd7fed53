"""Start small: what must hold before a long run is worth its time, from the first loss to the learning curve."""
