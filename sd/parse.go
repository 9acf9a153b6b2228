package sd

// ParseUNetConfig is [ReadUNetConfig] for a config.json that is already in memory; name stands for its path in errors.
func ParseUNetConfig(name string, data []byte) (UNetConfig, error) {
	return parsed(name, data, unetConfig)
}

// ParseVAEConfig is [ReadVAEConfig] for a config.json that is already in memory; name stands for its path in errors.
func ParseVAEConfig(name string, data []byte) (VAEConfig, error) {
	return parsed(name, data, vaeConfig)
}

// ParseTextConfig is [ReadTextConfig] for a config.json that is already in memory; name stands for its path in errors.
func ParseTextConfig(name string, data []byte) (TextConfig, error) {
	return parsed(name, data, textConfig)
}

func parsed[C any](name string, data []byte, read func(*jsonConfig) (C, error)) (C, error) {
	c, err := parseConfig(name, data)
	if err != nil {
		var none C
		return none, err
	}
	return read(c)
}
