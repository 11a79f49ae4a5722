// Balls that melt into one another.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), slope_ = vec2(0);
    float field = 0.0;
    vec3 tint = vec3(0);
    for (int k = 0; k < 5; k++) {
        vec2 centre = 0.8 * vec2(sin(iTime * between(k, 0.3, 1.0) + TAU * random(k + 10)),
            cos(iTime * between(k + 20, 0.3, 1.0) + TAU * random(k + 30)));
        vec2 d = p - centre;
        float pull = between(k + 40, 0.03, 0.12) / (dot(d, d) + 0.01);
        field += pull;
        slope_ += pull * d / (dot(d, d) + 0.05);
        tint += pull * ink(k + 50);
    }
    float body = smoothstep(0.8, 1.1, field);
    vec3 normal = normalize(vec3(slope_, 1.5));
    vec3 ground = mix(ink(60), palette(field), random(61));
    colour = vec4(mix(ground, tint / field * lit(normal), body), 1);
}
