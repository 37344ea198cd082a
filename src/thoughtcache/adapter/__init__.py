"""The PEFT method: a LoRA whose middle factor is the thought state of the sequence."""

from thoughtcache.adapter.registration import register

register()
