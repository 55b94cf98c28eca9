"""The report page: funnel, gallery, charts, as one HTML file.

May import `common`.
"""
