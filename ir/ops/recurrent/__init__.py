"""Recurrent operators and the recurrence they share."""
