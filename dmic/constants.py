"""Values that carry a meaning across the whole package."""

VISIBLE = 0  # modality id of visible images
INFRARED = 1  # modality id of infrared images
NOISE = -1  # label of a sample outside every cluster
