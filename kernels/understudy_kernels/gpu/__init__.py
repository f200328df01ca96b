"""placeholder"""
GPU: dict = {}
