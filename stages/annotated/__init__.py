"""Clips with texts from the annotations of published datasets: YouCook2, MSR-VTT, CrossTask, TVQA.

May import `clips`, `common`, `evaluate`, `lists`, `video`.
"""
