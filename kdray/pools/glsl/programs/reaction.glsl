// Spots and stripes as on fish: waves of one length and all directions, cut at a level.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.5, 4.0);
    float sum = 0.0;
    for (int k = 0; k < 8; k++) {
        float angle = TAU * (float(k) + random(k)) / 8.0;
        sum += sin(2.6 * dot(p + 0.4 * gradient(0.7 * p), vec2(cos(angle), sin(angle))) + TAU * random(k + 10)
            + 0.4 * iTime);
    }
    float level = between(20, -1.2, 1.2), soft = between(21, 0.3, 1.5);
    vec3 skin = mix(ink(22), palette(0.1 * sum), 0.4);
    colour = vec4(mix(skin, ink(23), smoothstep(level - soft, level + soft, sum)), 1);
}
