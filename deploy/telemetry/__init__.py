"""What is watched: the schema of telemetry, dashboards, alerts, settings of the collector."""
