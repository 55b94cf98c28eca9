"""The report page, a single HTML file with funnel, gallery and charts.

May import `common`, `judging`, `pictures`.
"""
