"""Microphone to loudspeaker: audio back end -> bounded rings -> one worker that converts -> terminal."""
