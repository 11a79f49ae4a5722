// Light on the floor of a pool.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.5, 4.0), q = p;
    float light = 0.0;
    for (int k = 1; k <= 4; k++) {
        float t = iTime * (0.4 + 0.15 * float(k)) + TAU * random(k);
        q = p + vec2(cos(t - q.x) + sin(t + q.y), sin(t - q.y) + cos(t + q.x));
        vec2 wave = sin(q + t);
        light += 0.08 / (0.05 + abs(wave.x * wave.y));
    }
    light = pow(0.25 * light, between(10, 0.7, 1.6));
    colour = vec4(mix(0.6 * ink(11), mix(vec3(1), ink(12), 0.4), clamp(light, 0.0, 1.0)), 1);
}
