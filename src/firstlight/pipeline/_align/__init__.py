"""Which messages form an event, by what they are called and when they came: pure state machines."""
