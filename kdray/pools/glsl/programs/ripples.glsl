// Rings on water where drops fall.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), slope_ = vec2(0);
    for (int k = 0; k < 4; k++) {
        vec2 d = p - 1.2 * vec2(2.0 * random(k) - 1.0, 2.0 * random(k + 10) - 1.0);
        float far = length(d) + 1e-3, wide = fract(0.3 * iTime + random(k + 20)) * 1.8;
        float ring = exp(-8.0 * (far - wide) * (far - wide)) * sin(between(40, 10.0, 22.0) * (far - wide));
        slope_ += d / far * ring;
    }
    vec3 normal = normalize(vec3(-slope_, between(41, 0.5, 1.5)));
    vec3 water = mix(ink(42), ink(43), 0.5 + 0.5 * noise(2.0 * p + slope_));
    colour = vec4(water * lit(normal), 1);
}
