"""What is soldered or plugged to the device itself: battery, buttons, lights, network, WiFi, and how the machine is.

Each is an interface, its driver, and nothing of what is decided with it: that is the agent's (`deployments/agent`).
Drivers are imported from their modules where they are used, since gpiod and psutil come with the extra `device` only.
"""
