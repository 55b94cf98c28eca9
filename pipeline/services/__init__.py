"""How workers and the driver exchange the messages of services: lines of JSON over TCP.

Imported by `engine` and stages with a service. May import `service`, `storage` and `errors`.
"""
