"""The carrier: owns the broker's connection and all deliveries, and runs no plugin code."""
