"""`mlx-eagle bench`: decoding with and without speculation, measured side by side in one run.

`measure.py` runs and times, `metrics.py` computes, `report.py` writes; start reading there.
"""
